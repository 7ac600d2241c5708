"""The geometry of policies: Fisher information, natural gradients, trust regions."""
