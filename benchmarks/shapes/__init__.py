"""Random-weight models of real shapes taken through every step of a study, each in a process of its own."""
