"""Torch only, no Ray: backbones, weights, bundles, prediction."""
