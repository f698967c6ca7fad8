"""COCO's data: fetched, unpacked, read, split, and tokenized."""
