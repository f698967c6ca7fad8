"""What the sample data set is drawn of: things, scenes of them, and how they are painted."""
