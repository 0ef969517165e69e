# Set the path of your corpus.
# "downloads" means the corpus can be downloaded by the recipe automatically

FILLETS=downloads  # or a directory with the Debian packages fillets-ng-data{,-nl,-cs}, as .deb files or unpacked

# For --corpus librilight. A labelled corpus that is not set is left out. Quote a path with spaces.
LIBRILIGHT=       # the folder that holds small, medium and large
LIBRISPEECH=      # the folder that holds LibriSpeech, or dev-clean, train-clean-100, ...; its SPEAKERS.TXT and
                  # CHAPTERS.TXT say whom to leave out of Libri-Light
AMI=              # the folder that holds amicorpus, or the meetings
AMI_ANNOTATIONS=  # ami_public_manual_1.6.2, unzipped, if it is not AMI's annotations
TEDLIUM2=         # the folder that holds TEDLIUM_release2
COMMONVOICE=      # the folder that holds cv-corpus-*/en; the newest of several is taken
CHIME6=           # the folder that holds audio and transcriptions
