"""Pure distillation losses."""
