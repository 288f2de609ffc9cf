"""The encoder f_theta: ResNets, their convolutions and batch norm, the head."""
