"""What goes over the client: data, weights, kernels, submissions."""
