"""Rules of published English corpora for the quality of a text, with a Chinese form of each."""
