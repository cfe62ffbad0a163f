"""Where arrays lie: weights declared once, rules of sharding, the mesh, several processes."""
