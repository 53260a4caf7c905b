"""Files in and out: RELION STAR, cryoSPARC .cs and MRC, with degrees and pixels only in here."""
