import qdx


@qdx.register("prompts", "arithmetic")
class Arithmetic:
    """Questions of arithmetic, one for each reference."""

    def __init__(self, references: int = 4, continuation_tokens: int = 16):
        self.count, self.tokens = references, continuation_tokens

    def load(self, tokenizer):
        from qdx.prompts import Inline

        texts = [f"What is {17 * n + 4} times {9 * n + 13}? Explain each step." for n in range(self.count)]
        return Inline(texts, continuation_tokens=self.tokens).load(tokenizer)
