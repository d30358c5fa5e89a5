"""tensorcall.rpc in TorchScript: what docs/torchscript.md tells."""
