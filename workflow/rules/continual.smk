rule continual:
    input:
        unpack(jobs.continual.inputs),
    output:
        **jobs.continual.outputs,
    log:
        jobs.continual.log,
    benchmark:
        jobs.continual.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        **jobs.continual.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm continual --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --protocol {wildcards.protocol} --threads {threads} --gpus {resources.gpu:q}"
