"""From logits to tokens to text: processors, decoding with a cache, stops."""
