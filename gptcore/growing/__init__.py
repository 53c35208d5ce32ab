"""How the parameters of a model become those of a larger one: axes of tensors, what norms and positions do to a wider
stream, and the parts of a block. `gptcore.grow` puts them together and measures the result."""
