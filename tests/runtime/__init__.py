"""Tests of what `sam build` makes, under Lambda's own runtime client and emulator, on real stores."""
