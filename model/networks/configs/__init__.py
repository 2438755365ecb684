"""Configs that several U-Nets and ControlNets share."""
