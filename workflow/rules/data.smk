rule images:
    input:
        unpack(jobs.images.inputs),
    output:
        **jobs.images.outputs,
    log:
        jobs.images.log,
    benchmark:
        jobs.images.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=120,
        gpu=0,
    params:
        **jobs.images.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm data --config {params.config:q} --dataset {wildcards.dataset} --make images"


rule zca:
    input:
        unpack(jobs.zca.inputs),
    output:
        **jobs.zca.outputs,
    log:
        jobs.zca.log,
    benchmark:
        jobs.zca.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=120,
        gpu=0,
    params:
        **jobs.zca.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm data --config {params.config:q} --dataset {wildcards.dataset} --make zca"
