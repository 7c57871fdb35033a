"""From logits to the next token, and from tokens to the end of an answer."""
