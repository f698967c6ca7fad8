"""Images and captions of one's own, in many layouts, made into a data root in COCO's."""
