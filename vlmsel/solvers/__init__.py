"""Linear solvers: tensors in, tensors out; they know nothing of models, gradients or influence."""
