# Set the path of your corpus.
# "downloads" means the corpus can be downloaded by the recipe automatically

FILLETS=downloads  # or a directory with the Debian packages fillets-ng-data{,-nl,-cs}, as .deb files or unpacked

# For --corpus librilight. A labelled corpus that is not set is left out. Quote a path with spaces.
LIBRILIGHT=       # the folder that holds small, medium and large
LIBRISPEECH=      # the folder that holds LibriSpeech, or dev-clean, train-clean-100, ...; its SPEAKERS.TXT and
                  # CHAPTERS.TXT say whom to leave out of Libri-Light
AMI=              # the folder that holds amicorpus, or the meetings
AMI_ANNOTATIONS=  # ami_public_manual_1.6.2, unzipped, if it is not AMI's annotations
TEDLIUM2=         # the folder that holds TEDLIUM_release2, with its train, dev and test
COMMONVOICE=      # the folder that holds cv-corpus-*/en, with validated.tsv, dev.tsv and test.tsv; the newest of
                  # several is taken
WSJ0=             # LDC93S6A or B: the folder that holds the discs, 11-1.1 to 11-15.1
WSJ1=             # LDC94S13A or B: the folder that holds the discs, 13-1.1 to 13-34.1
SWBD=             # the folder that holds LDC97S62, and in it transcriptions/swb_ms98_transcriptions (openslr.org/5);
                  # for evaluation LDC2002S09 and LDC2002T43; for Fisher LDC2004S13, LDC2004T19, LDC2005S13, LDC2005T19
CHIME6=           # the folder that holds audio and transcriptions
