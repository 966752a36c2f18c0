"""One address in front of Claude and the models here: bytes pass unchanged, a copy is judged, cuts are never hidden."""
