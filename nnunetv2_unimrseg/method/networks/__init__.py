"""The planned U-Net with adapters."""
