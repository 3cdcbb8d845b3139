"""Where targets for distillation come from."""
