"""Image files: which are readable and how large, as upright RGB of 8 bits, and resized copies of them."""
