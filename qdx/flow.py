"""Run the phases of a job: produce transcripts, or replay those of producers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdx.backends import OnePass
from qdx.backends.selfcheck import Listener, generates_as_it_replays, replays_exactly

if TYPE_CHECKING:
    from qdx.backends import Backend, Facts
    from qdx.capture import Recorder
    from qdx.dataset.layout import Producer
    from qdx.progress import Progress
    from qdx.prompts import Reference
    from qdx.schema import Experiment


@dataclass(frozen=True)
class Flow:
    """One job's loaded model and its prompts.

    Attributes
    ----------
    backend : Backend
    facts : Facts
    experiment : Experiment
    references : list of Reference
    progress : Progress
    """

    backend: Backend
    facts: Facts
    experiment: Experiment
    references: list[Reference]
    progress: Progress

    def produce(self, recorder: Recorder, tokenizer: Any) -> Mapping[str, Any]:
        """Prefill, generate and replay the shared continuation, again in every repeat.

        Returns
        -------
        Mapping
            Root attributes: ``replay_exact`` says whether the replay of the first transcripts gave their rows
            back bit by bit.
        """
        batches = self._batches()
        self.progress.start("running", self.experiment.repeats * len(batches))
        first = self._prompts(batches[0])
        listener: Any = Listener([len(ids) for ids in first], recorder)
        transcript: list[list[int]] = []
        for repeat in range(self.experiment.repeats):
            self.backend.reseed(self.experiment.seed + repeat)
            for batch in batches:
                self._step(repeat, batch)
                generated = self._run_batch(recorder if transcript else listener, repeat, batch)
                transcript = transcript or generated
                for reference, ids in zip(batch, generated, strict=True):
                    eos = next((i for i, token in enumerate(ids) if token in self.facts.eos_token_ids), -1)
                    recorder.output(repeat, reference, ids, str(tokenizer.decode(ids)), eos)
                recorder.sync()  # what is synchronised survives kill -9
        self.progress.start("replaying its own first transcript")
        return {"replay_exact": replays_exactly(self.backend, first, transcript, listener)}

    def verify(self, recorder: Recorder, producers: Sequence[Producer]) -> Mapping[str, Any]:
        """Prefill, and replay every producer's transcripts from it, again in every repeat.

        Returns
        -------
        Mapping
            As of `produce`, of a generation of this config's own that is not recorded: a verdict takes for
            granted that here replay and generation compute the same.
        """
        batches = self._batches()
        self.progress.start("replaying transcripts", self.experiment.repeats * len(batches))
        for repeat in range(self.experiment.repeats):
            self.backend.reseed(self.experiment.seed + repeat)
            for batch in batches:
                self._step(repeat, batch)
                prompts = self._prompts(batch)
                recorder.begin("prefill", repeat, batch)
                self.backend.prefill(prompts, recorder)
                for index, producer in enumerate(producers):
                    forced = producer.transcripts(batch)
                    # Nobody replays no answer, or one of a single token, which prefill predicts.
                    here = [i for i, ids in enumerate(forced) if len(ids) > 1]
                    if not here:
                        continue
                    if len(here) < len(batch):
                        # A replay goes on from the last prefill, so it has to be of these references alone.
                        self._prefill_again([prompts[i] for i in here])
                    recorder.begin("replay", repeat, [batch[i] for i in here], producer=index)
                    self.backend.replay([prompts[i] for i in here], [forced[i] for i in here], recorder)
                    if len(here) < len(batch):
                        self._prefill_again(prompts)
                recorder.sync()
        self.progress.start("replaying a transcript of its own")
        first = [len(ids) for one in producers for ids in one.transcripts(batches[0])]
        count = max(2, *first)
        return {"replay_exact": generates_as_it_replays(self.backend, self._prompts(batches[0]), count)}

    def _prefill_again(self, prompts: list[list[int]]) -> None:
        """Make these the prompts that the next replay starts from; nothing is recorded."""
        if isinstance(self.backend, OnePass):  # its replays compute a prefill of their own
            return
        silent: Any = Listener([len(ids) for ids in prompts])
        self.backend.prefill(prompts, silent)

    def _batches(self) -> list[list[int]]:
        """The indices of the references in groups of batch_size; the last one may be smaller."""
        count, size = len(self.references), self.experiment.batch_size
        return [list(range(start, min(start + size, count))) for start in range(0, count, size)]

    def _prompts(self, batch: Sequence[int]) -> list[list[int]]:
        return [self.references[i].token_ids.tolist() for i in batch]

    def _step(self, repeat: int, batch: Sequence[int]) -> None:
        of = f"repeat {repeat + 1} of {self.experiment.repeats}"
        self.progress.step(f"{of}, {self.references[batch[0]].name}")

    def _run_batch(self, recorder: Recorder, repeat: int, batch: list[int]) -> list[list[int]]:
        """Prefill, generate and replay some references together; return the generated ids of each."""
        prompts, count = self._prompts(batch), self.experiment.generate.tokens
        if isinstance(self.backend, OnePass):
            generated = self.backend.prefill_generate(
                prompts, count, recorder, lambda phase: recorder.begin(phase, repeat, batch)
            )
        else:
            recorder.begin("prefill", repeat, batch)
            self.backend.prefill(prompts, recorder)
            recorder.begin("decode", repeat, batch)
            generated = self.backend.generate(prompts, count, recorder)
        recorder.begin("replay", repeat, batch)
        self.backend.replay(prompts, [self.references[i].continuation.tolist() for i in batch], recorder)
        return generated
