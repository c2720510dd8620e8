"""Which sample comes when: shuffles, mixtures and turns, all pure functions."""
