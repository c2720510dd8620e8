"""Vision towers: any vision model of a local `transformers` folder as a visual source."""
