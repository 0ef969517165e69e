# Set the path of your corpus.
# "downloads" means the corpus can be downloaded by the recipe automatically

FILLETS=downloads  # or a directory with the Debian packages fillets-ng-data{,-nl,-cs}, as .deb files or unpacked

# LIBRILIGHT=
# LIBRISPEECH=
# AMI=
