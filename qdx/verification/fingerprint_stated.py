"""What a server states of its build (``system_fingerprint``), beside what an own config would state.

It is the server's word: equal says that it names the same version, and another version is no lie. So nothing
is decided by it.
"""

from __future__ import annotations

import re

# How each engine writes its fingerprint: vLLM's version and a hash of its settings, llama.cpp's build and
# commit. transformers' server gives none.
FORMS = {
    "vllm": re.compile(r"vllm-(?P<version>\d[\w.+]*?)-(?P<rest>[\w-]+)"),
    "llama.cpp": re.compile(r"(?P<version>b[0-9]+)-(?P<rest>\w+)"),
}
NO_BUILD = ("b0",)  # llama.cpp that was built without its history, as in the wheels of xllamacpp


def compared(fingerprint: str, engine: str, version: str) -> str:
    """Say how a stated fingerprint compares with what an own config's engine would state.

    Parameters
    ----------
    fingerprint : str
        As the answers state it; "" where they do not.
    engine, version : str
        Of the config here, such as ``vllm`` and ``0.33.0``, or ``llama.cpp`` and ``b11549 (…)``.

    Returns
    -------
    str

    Examples
    --------
    >>> compared("vllm-0.33.0-tp1-523d7c03", "vllm", "0.33.0")
    'equal: vllm 0.33.0'
    >>> compared("b11402-0ce8cd1", "llama.cpp", "b11549 (xllamacpp 2026.10.11549)")
    'differs: b11402, here b11549'
    >>> compared("vllm-0.33.0-523d7c03", "transformers", "5.24.0")
    'another engine: vllm, here transformers'
    >>> compared("b0-unknown", "llama.cpp", "b11549"), compared("", "vllm", "0.33.0")
    ('llama.cpp, names no build', 'not given')
    >>> compared("fp_8802369eaa", "vllm", "0.33.0")
    'of a form that is not known'
    """
    if not fingerprint:
        return "not given"
    found = {name: one.fullmatch(fingerprint) for name, one in FORMS.items()}
    stated = next(((name, match) for name, match in found.items() if match is not None), None)
    if stated is None:
        return "of a form that is not known"
    name, match = stated
    if name != engine:
        return f"another engine: {name}, here {engine or 'not stated'}"
    said = match["version"]
    if said in NO_BUILD:
        return f"{name}, names no build"
    own = re.split(r"[ +]", version)[0]
    if said.partition("+")[0] == own:
        return f"equal: {said}" if name == "llama.cpp" else f"equal: {name} {said}"
    return f"differs: {said}, here {own or 'not stated'}"
