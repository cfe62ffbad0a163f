"""One file per component: its rules in each naming, and the keys of its config."""
