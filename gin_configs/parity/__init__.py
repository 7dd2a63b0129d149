"""Other programs' evaluations, to explain their figures by."""
