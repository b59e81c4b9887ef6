"""A step as a graph: recorded, checked, cut into products and kernels, and where everything stands in memory."""
