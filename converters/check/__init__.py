"""A converted transformer on recorded activations: is it the network that made the recording?"""
