"""One training on several processes: the mesh, and what a tensor group exchanges."""
