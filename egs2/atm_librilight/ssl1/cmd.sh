# How jobs run: local, or submitted to a cluster. The options of each backend are those of
# ESPnet's run.pl and slurm.pl. conf/slurm.conf holds the partitions: it is a link to
# ESPnet's defaults, to be replaced by your own file.
cmd_backend=${cmd_backend:-local}

case "${cmd_backend}" in
    local) _cmd=run.pl ;;
    stdout) _cmd=stdout.pl ;;
    slurm) _cmd="slurm.pl" ;;
    sge) _cmd="queue.pl" ;;
    pbs) _cmd="pbs.pl" ;;
    ssh) _cmd=ssh.pl ;;
    *)
        echo "cmd.sh: unknown cmd_backend=${cmd_backend};" \
            "write local, stdout, slurm, sge, pbs or ssh" 1>&2
        return 1
        ;;
esac

export train_cmd=${_cmd}   # data preparation and statistics
export cuda_cmd=${_cmd}    # training; ESPnet appends --gpu
export decode_cmd=${_cmd}  # scoring and decoding
