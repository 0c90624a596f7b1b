import qdx


@qdx.register("prompts", "arithmetic")
class Arithmetic:
    """Questions of arithmetic, one for each reference."""

    def __init__(self, references: int = 4, continuation_tokens: int = 16):
        self.texts = [f"What is {17 * n + 4} times {9 * n + 13}? Show steps." for n in range(references)]
        self.tokens = continuation_tokens

    def load(self, tokenizer):
        return qdx.prompts.Inline(self.texts, continuation_tokens=self.tokens).load(tokenizer)
