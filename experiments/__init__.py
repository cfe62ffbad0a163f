"""Runs that a person can read top to bottom, beside the libraries that they share.

Libraries are `ltx2_recipe`, `chime/world`, `chime/judge`, `killing/subjects`, `pod`, `script` and `cli_errors`. All
else is a script.
"""
