"""Text to registers and back: encoder, lexicon, mentions, passages, prompts, generators."""
