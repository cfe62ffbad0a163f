"""Runs that a person can read top to bottom, beside the libraries that they share.

Libraries are `ltx2_flags`, `ltx2_recipe`, `ltx2_regression`, `ltx2_samples`, `chime/world`, `chime/judge`,
`killing/subjects`, `pod`, `script` and `cli_errors`. All else is a script.
"""
