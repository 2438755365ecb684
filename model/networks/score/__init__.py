"""The parts that the networks of score SDEs have and no other has (Song et al. 2021, arXiv:2011.13456, appendix H)."""
