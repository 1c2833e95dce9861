"""Op backends behind one Protocol: `reference` is plain torch and the oracle for every other."""
