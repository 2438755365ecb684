"""Networks that steer a U-Net by an image: ControlNet and T2I-Adapter."""
