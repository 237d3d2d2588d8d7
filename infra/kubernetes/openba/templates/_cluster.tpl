{{- /* The spec of the Ray cluster, shared by the standing cluster and a job's own. */ -}}
{{- define "openba.cluster" -}}
rayVersion: {{ .Values.rayVersion | quote }}
# Whoever reaches the Jobs API may run any command, so it asks for the token. The token is sent unencrypted.
authOptions: {mode: token, secretName: {{ .Values.tokenSecret }}}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0"            # workers run on the nodes alone
    num-gpus: "0"
    dashboard-host: 0.0.0.0  # inside the cluster's network
    metrics-export-port: "8080"
  template:
    metadata:
      annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
    spec:
      automountServiceAccountToken: false
      containers:
        - name: ray-head
          image: {{ .Values.image.head }}
          env:
            - {name: OPENBA_HOME, value: {{ .Values.state.path }}}
          envFrom:
            - secretRef: {name: {{ .Values.environmentSecret }}}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: metrics, containerPort: 8080}
          resources: {{- toYaml .Values.head.resources | nindent 12 }}
          securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true}
          volumeMounts:
            - {name: state, mountPath: {{ .Values.state.path }}}
      volumes:
        - name: state
          persistentVolumeClaim: {claimName: {{ .Values.state.claim }}}
workerGroupSpecs:
  - groupName: a100
    replicas: {{ .Values.workers.nodes }}
    minReplicas: {{ .Values.workers.nodes }}
    maxReplicas: {{ .Values.workers.nodes }}
    rayStartParams:
      num-gpus: {{ .Values.workers.gpus | quote }}
      object-store-memory: {{ .Values.workers.objectStore | quote }}
      metrics-export-port: "8080"
    template:
      metadata:
        annotations: {prometheus.io/scrape: "true", prometheus.io/port: "8080"}
      spec:
        automountServiceAccountToken: false
        nodeSelector: {{- toYaml .Values.workers.nodeSelector | nindent 10 }}
        tolerations: {{- toYaml .Values.workers.tolerations | nindent 10 }}
        containers:
          - name: ray-worker
            image: {{ .Values.image.worker }}
            env:
              - {name: OPENBA_HOME, value: {{ .Values.state.path }}}
              {{- range $name, $value := .Values.workers.environment }}
              - {name: {{ $name }}, value: {{ $value | quote }}}
              {{- end }}
            envFrom:
              - secretRef: {name: {{ .Values.environmentSecret }}}
            ports:
              - {name: metrics, containerPort: 8080}
            resources:
              {{- $devices := merge (dict "nvidia.com/gpu" (toString .Values.workers.gpus)) .Values.workers.rdma }}
              {{- range $kind := list "requests" "limits" }}
              {{ $kind }}: {{- toYaml (merge (dict) $devices (index $.Values.workers.resources $kind)) | nindent 16 }}
              {{- end }}
            # IPC_LOCK: InfiniBand pins the memory that it reads and writes.
            securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {add: [IPC_LOCK]}}
            volumeMounts:
              - {name: state, mountPath: {{ .Values.state.path }}}
              - {name: shared-memory, mountPath: /dev/shm}
        volumes:
          - name: state
            persistentVolumeClaim: {claimName: {{ .Values.state.claim }}}
          - name: shared-memory
            emptyDir: {medium: Memory, sizeLimit: {{ .Values.workers.sharedMemory }}}
{{- end -}}
