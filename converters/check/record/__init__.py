"""Cases recorded from ltx-core or diffusers, on the user's own machine and on the file that was converted."""
