"""Where arrays are: weights declared once, sharding rules, the mesh, several processes."""
