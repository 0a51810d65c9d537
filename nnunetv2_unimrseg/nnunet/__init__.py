"""What is known of nnU-Net's folders and files."""
