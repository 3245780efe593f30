"""What training computes once: decoded views and activations of frozen blocks, under a key of all they depend on."""
