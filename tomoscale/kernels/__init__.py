"""Block in, block out: plain loops about pixels, with `reference` saying what each kernel means."""
