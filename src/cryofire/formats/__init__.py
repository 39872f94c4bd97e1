"""The border with other programs: MRC, STAR and cryoSPARC files, and the conversion of their conventions."""
