PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO alembic_version VALUES('0004');
CREATE TABLE job_labels (
	job_id VARCHAR(40) NOT NULL, 
	"key" VARCHAR(128) NOT NULL, 
	value VARCHAR(128) NOT NULL, 
	PRIMARY KEY (job_id, "key"), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE events (
	job_id VARCHAR(40) NOT NULL, 
	number INTEGER NOT NULL, 
	attempt INTEGER NOT NULL, 
	time VARCHAR(32) NOT NULL, 
	type VARCHAR(32) NOT NULL, 
	data JSON NOT NULL, 
	PRIMARY KEY (job_id, number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',1,1,'2026-11-27T12:25:49.091488Z','status','{"status": "queued"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',2,1,'2026-11-27T12:25:49.486886Z','status','{"status": "starting"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',3,1,'2026-11-27T12:26:10.392495Z','phase','{"phase": "preparing"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',4,1,'2026-11-27T12:26:26.178696Z','phase','{"phase": "waiting_for_resources"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',5,1,'2026-11-27T12:26:26.196162Z','phase','{"phase": "starting_workers"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',6,1,'2026-11-27T12:26:43.797173Z','workers','{"workers": [{"rank": 0, "pid": 8373, "node_id": "c143ab500f050d5dcc7f8098dfb8c523e0cbc5fc92e4c76ce333d93b", "node_ip": "127.0.0.1", "device": "cpu", "classes": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}]}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',7,1,'2026-11-27T12:26:43.797383Z','phase','{"phase": "condensing"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',8,1,'2026-11-27T12:26:44.001580Z','status','{"status": "running"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',9,1,'2026-11-27T12:26:44.202456Z','iteration','{"iteration": 1, "total": 3, "loss": 3497.2783203125, "feature_loss": 3494.617431640625, "discrimination_loss": 2.660792589187622, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1786, "eta_s": 0.4}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',10,1,'2026-11-27T12:26:44.351027Z','iteration','{"iteration": 2, "total": 3, "loss": 2336.181640625, "feature_loss": 2334.0341796875, "discrimination_loss": 2.147519826889038, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1846, "eta_s": 0.2}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',11,1,'2026-11-27T12:26:44.459415Z','iteration','{"iteration": 3, "total": 3, "loss": 1401.9715576171875, "feature_loss": 1399.9017333984375, "discrimination_loss": 2.069780111312866, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.123, "eta_s": 0.0}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',12,1,'2026-11-27T12:26:44.469013Z','checkpoint','{"iteration": 3, "file": "checkpoint-00000003.safetensors"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',13,1,'2026-11-27T12:26:44.490846Z','phase','{"phase": "evaluating"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',14,1,'2026-11-27T12:27:06.090312Z','workers','{"workers": [{"rank": 0, "pid": 8615, "node_id": "c143ab500f050d5dcc7f8098dfb8c523e0cbc5fc92e4c76ce333d93b", "node_ip": "127.0.0.1", "device": "cpu", "classes": []}]}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',15,1,'2026-11-27T12:27:21.097188Z','evaluated','{"source": "synthetic", "network": "convnet", "augment": "none", "repeat": 0, "accuracy": 10.0, "done": 1, "total": 1, "eta_s": 0.0}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',16,1,'2026-11-27T12:27:21.283929Z','phase','{"phase": "publishing"}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',17,1,'2026-11-27T12:27:21.327113Z','finished','{"result": {"iterations": 3, "images": 10, "evaluation": {"networks": [{"name": "convnet", "mean": 10.0, "std": 0.0, "n": 1, "accuracies": [10.0]}], "baselines": {}}, "seconds": {"condensing": 34.084, "total": 70.891}, "versions": {"cafe-service": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"}}}');
INSERT INTO events VALUES('job_hwsegfe6uatnxnhk',18,1,'2026-11-27T12:27:27.924313Z','status','{"status": "succeeded"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',1,1,'2026-11-27T12:27:31.282570Z','status','{"status": "queued"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',2,1,'2026-11-27T12:27:31.366101Z','status','{"status": "starting"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',3,1,'2026-11-27T12:27:43.668128Z','phase','{"phase": "preparing"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',4,1,'2026-11-27T12:27:48.338045Z','phase','{"phase": "waiting_for_resources"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',5,1,'2026-11-27T12:27:48.355701Z','phase','{"phase": "starting_workers"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',6,1,'2026-11-27T12:28:02.148668Z','workers','{"workers": [{"rank": 0, "pid": 9834, "node_id": "c143ab500f050d5dcc7f8098dfb8c523e0cbc5fc92e4c76ce333d93b", "node_ip": "127.0.0.1", "device": "cpu", "classes": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}]}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',7,1,'2026-11-27T12:28:02.148884Z','phase','{"phase": "condensing"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',8,1,'2026-11-27T12:28:02.304380Z','status','{"status": "running"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',9,1,'2026-11-27T12:28:02.626924Z','iteration','{"iteration": 1, "total": 400, "loss": 6677.62548828125, "feature_loss": 6674.90576171875, "discrimination_loss": 2.719747543334961, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.3066, "eta_s": 122.3}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',10,1,'2026-11-27T12:28:02.776751Z','iteration','{"iteration": 2, "total": 400, "loss": 3805.362060546875, "feature_loss": 3803.5087890625, "discrimination_loss": 1.853318214416504, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.145, "eta_s": 89.9}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',11,1,'2026-11-27T12:28:03.157721Z','iteration','{"iteration": 3, "total": 400, "loss": 1667.66552734375, "feature_loss": 1665.9945068359375, "discrimination_loss": 1.6710717678070068, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.3857, "eta_s": 110.8}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',12,1,'2026-11-27T12:28:03.331852Z','iteration','{"iteration": 4, "total": 400, "loss": 1193.63427734375, "feature_loss": 1192.22216796875, "discrimination_loss": 1.41215980052948, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1728, "eta_s": 100.0}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',13,1,'2026-11-27T12:28:03.516271Z','iteration','{"iteration": 5, "total": 400, "loss": 733.7552490234375, "feature_loss": 732.4808959960938, "discrimination_loss": 1.274336338043213, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.187, "eta_s": 94.6}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',14,1,'2026-11-27T12:28:03.560339Z','checkpoint','{"iteration": 5, "file": "checkpoint-00000005.safetensors"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',15,1,'2026-11-27T12:28:03.697368Z','iteration','{"iteration": 6, "total": 400, "loss": 548.0487670898438, "feature_loss": 546.5770874023438, "discrimination_loss": 1.4717012643814087, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1737, "eta_s": 90.0}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',16,1,'2026-11-27T12:28:03.865289Z','iteration','{"iteration": 7, "total": 400, "loss": 471.36474609375, "feature_loss": 469.9617004394531, "discrimination_loss": 1.403036117553711, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.175, "eta_s": 86.8}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',17,1,'2026-11-27T12:28:03.991521Z','iteration','{"iteration": 8, "total": 400, "loss": 392.3436584472656, "feature_loss": 391.0615234375, "discrimination_loss": 1.2821240425109863, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.0952, "eta_s": 80.4}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',18,1,'2026-11-27T12:28:04.276433Z','iteration','{"iteration": 9, "total": 400, "loss": 404.6796875, "feature_loss": 403.26141357421875, "discrimination_loss": 1.4182778596878052, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.3129, "eta_s": 84.9}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',19,1,'2026-11-27T12:28:04.450153Z','iteration','{"iteration": 10, "total": 400, "loss": 368.685546875, "feature_loss": 367.20172119140625, "discrimination_loss": 1.4838252067565918, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1711, "eta_s": 82.9}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',20,1,'2026-11-27T12:28:04.476985Z','checkpoint','{"iteration": 10, "file": "checkpoint-00000010.safetensors"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',21,1,'2026-11-27T12:28:04.679000Z','iteration','{"iteration": 11, "total": 400, "loss": 366.039794921875, "feature_loss": 364.6131591796875, "discrimination_loss": 1.4266448020935059, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2326, "eta_s": 83.4}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',22,1,'2026-11-27T12:28:04.766377Z','iteration','{"iteration": 12, "total": 400, "loss": 357.1572265625, "feature_loss": 355.70806884765625, "discrimination_loss": 1.4491479396820068, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.0848, "eta_s": 79.0}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',23,1,'2026-11-27T12:28:04.882447Z','iteration','{"iteration": 13, "total": 400, "loss": 330.03985595703125, "feature_loss": 328.52032470703125, "discrimination_loss": 1.519539713859558, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1164, "eta_s": 76.2}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',24,1,'2026-11-27T12:28:04.934057Z','iteration','{"iteration": 14, "total": 400, "loss": 399.1433410644531, "feature_loss": 397.78497314453125, "discrimination_loss": 1.3583539724349976, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.0567, "eta_s": 72.1}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',25,1,'2026-11-27T12:28:05.032980Z','iteration','{"iteration": 15, "total": 400, "loss": 373.12969970703125, "feature_loss": 371.7107238769531, "discrimination_loss": 1.4189796447753906, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.0968, "eta_s": 69.6}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',26,1,'2026-11-27T12:28:05.042577Z','checkpoint','{"iteration": 15, "file": "checkpoint-00000015.safetensors"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',27,1,'2026-11-27T12:28:05.337713Z','iteration','{"iteration": 16, "total": 400, "loss": 355.0867614746094, "feature_loss": 353.746337890625, "discrimination_loss": 1.3404165506362915, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2919, "eta_s": 72.1}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',28,1,'2026-11-27T12:28:05.461695Z','iteration','{"iteration": 17, "total": 400, "loss": 326.6683654785156, "feature_loss": 325.338134765625, "discrimination_loss": 1.3302454948425293, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1293, "eta_s": 70.6}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',29,1,'2026-11-27T12:28:05.644920Z','iteration','{"iteration": 18, "total": 400, "loss": 306.35992431640625, "feature_loss": 305.0464782714844, "discrimination_loss": 1.3134320974349976, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1868, "eta_s": 70.5}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',30,1,'2026-11-27T12:28:05.873186Z','iteration','{"iteration": 19, "total": 400, "loss": 356.6333923339844, "feature_loss": 355.3569641113281, "discrimination_loss": 1.2764251232147217, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2173, "eta_s": 70.9}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',31,1,'2026-11-27T12:28:06.078698Z','iteration','{"iteration": 20, "total": 400, "loss": 316.59710693359375, "feature_loss": 315.1343078613281, "discrimination_loss": 1.4628090858459473, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2212, "eta_s": 71.4}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',32,1,'2026-11-27T12:28:06.142287Z','checkpoint','{"iteration": 20, "file": "checkpoint-00000020.safetensors"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',33,1,'2026-11-27T12:28:06.314897Z','iteration','{"iteration": 21, "total": 400, "loss": 413.29656982421875, "feature_loss": 411.6614990234375, "discrimination_loss": 1.6350605487823486, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2343, "eta_s": 72.1}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',34,1,'2026-11-27T12:28:06.497272Z','iteration','{"iteration": 22, "total": 400, "loss": 348.4201354980469, "feature_loss": 346.9296569824219, "discrimination_loss": 1.4904649257659912, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1854, "eta_s": 71.8}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',35,1,'2026-11-27T12:28:06.619468Z','iteration','{"iteration": 23, "total": 400, "loss": 315.8127746582031, "feature_loss": 314.5116882324219, "discrimination_loss": 1.3010929822921753, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1219, "eta_s": 70.5}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',36,1,'2026-11-27T12:28:06.768180Z','iteration','{"iteration": 24, "total": 400, "loss": 362.8697204589844, "feature_loss": 361.33074951171875, "discrimination_loss": 1.538960337638855, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1397, "eta_s": 69.6}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',37,1,'2026-11-27T12:28:06.919569Z','iteration','{"iteration": 25, "total": 400, "loss": 323.3742980957031, "feature_loss": 321.8116455078125, "discrimination_loss": 1.5626665353775024, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1592, "eta_s": 69.0}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',38,1,'2026-11-27T12:28:06.938880Z','checkpoint','{"iteration": 25, "file": "checkpoint-00000025.safetensors"}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',39,1,'2026-11-27T12:28:07.161211Z','iteration','{"iteration": 26, "total": 400, "loss": 317.1445007324219, "feature_loss": 315.7397155761719, "discrimination_loss": 1.4047755002975464, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2402, "eta_s": 69.6}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',40,1,'2026-11-27T12:28:07.338098Z','iteration','{"iteration": 27, "total": 400, "loss": 332.4701232910156, "feature_loss": 331.1930236816406, "discrimination_loss": 1.2771098613739014, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.178, "eta_s": 69.3}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',41,1,'2026-11-27T12:28:07.615722Z','iteration','{"iteration": 28, "total": 400, "loss": 329.2734680175781, "feature_loss": 327.91156005859375, "discrimination_loss": 1.3619091510772705, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.2709, "eta_s": 70.3}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',42,1,'2026-11-27T12:28:07.761510Z','iteration','{"iteration": 29, "total": 400, "loss": 397.2138366699219, "feature_loss": 395.8853454589844, "discrimination_loss": 1.3284826278686523, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1457, "eta_s": 69.5}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',43,1,'2026-11-27T12:28:07.910622Z','iteration','{"iteration": 30, "total": 400, "loss": 314.2328186035156, "feature_loss": 312.8186950683594, "discrimination_loss": 1.4141345024108887, "query_accuracy": null, "outer_steps": 1, "inner_epochs": 0, "stop_outer": {"bound": 1}, "stop_inner": {}, "real_images": 1437, "seconds": 0.1361, "eta_s": 68.7}');
INSERT INTO events VALUES('job_w4vha5ao2wikrey7',44,1,'2026-11-27T12:28:07.944718Z','checkpoint','{"iteration": 30, "file": "checkpoint-00000030.safetensors"}');
CREATE TABLE api_keys (
	number INTEGER NOT NULL, 
	id VARCHAR(40) NOT NULL, 
	name VARCHAR(128) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	scopes VARCHAR(64) NOT NULL, 
	max_running_jobs INTEGER, 
	requests_per_minute INTEGER, 
	max_upload_bytes BIGINT, 
	max_stored_bytes BIGINT, 
	created_at VARCHAR(32) NOT NULL, 
	revoked_at VARCHAR(32), 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	UNIQUE (hash)
);
CREATE TABLE IF NOT EXISTS "jobs" (
	number INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	id VARCHAR(40) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	name TEXT, 
	status VARCHAR(16) NOT NULL, 
	attempt INTEGER NOT NULL, 
	phase VARCHAR(32), 
	done INTEGER NOT NULL, 
	total INTEGER NOT NULL, 
	eta_s DOUBLE, 
	spec JSON NOT NULL, 
	result JSON, 
	error JSON, 
	created_at VARCHAR(32) NOT NULL, 
	started_at VARCHAR(32), 
	finished_at VARCHAR(32), 
	last_event INTEGER NOT NULL, 
	version INTEGER NOT NULL, 
	owner VARCHAR(40), stored_bytes BIGINT, 
	CONSTRAINT jobs_owner_fkey FOREIGN KEY(owner) REFERENCES api_keys (id), 
	UNIQUE (id)
);
INSERT INTO jobs VALUES(1,'job_hwsegfe6uatnxnhk','condense','done','succeeded',1,NULL,1,1,NULL,'{"name": "done", "labels": {}, "kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "iterations": 3, "seed": 0, "method": {"batch_real": 256, "image_lr": 0.1, "image_momentum": 0.5, "image_milestones": [1200, 1400, 1800], "init": "noise", "augment": "none", "max_outer": 1, "max_inner": 1, "batch_train": 256, "network_lr": 0.01, "name": "cafe", "preset": "paper", "beta": 1.0, "layer_weights": [1.0, 1.0, 1.0], "layers": [0, 1, 2], "discrimination": true, "bilevel": "dynamic", "lambda_1": 0.05, "lambda_2": 0.05, "gamma": 10, "query_per_class": 256, "query_carry": false}, "network": {"name": "convnet", "width": 8, "depth": 2, "norm": "instance", "activation": "relu", "pooling": "avg"}, "resources": {"workers": 1, "gpus_per_worker": 0.0, "cpus_per_worker": 1}, "precision": "float32", "compile": false, "checkpoint_every": 50, "evaluation": {"networks": [{"name": "convnet", "width": 128, "depth": 3, "norm": "instance", "activation": "relu", "pooling": "avg"}], "repeats": 1, "epochs": 5, "augment": "none", "baselines": [], "whole_epochs": 5}}','{"iterations": 3, "images": 10, "evaluation": {"networks": [{"name": "convnet", "mean": 10.0, "std": 0.0, "n": 1, "accuracies": [10.0]}], "baselines": {}}, "seconds": {"condensing": 34.084, "total": 70.891}, "versions": {"cafe-service": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"}}',NULL,'2026-11-27T12:25:49.085107Z','2026-11-27T12:25:49.486821Z','2026-11-27T12:27:27.924142Z',18,13,NULL,23169);
INSERT INTO jobs VALUES(2,'job_w4vha5ao2wikrey7','condense','interrupted','running',1,'condensing',30,400,68.700000000000002843,'{"name": "interrupted", "labels": {}, "kind": "condense", "dataset": {"name": "digits"}, "ipc": 1, "iterations": 400, "seed": 0, "method": {"batch_real": 256, "image_lr": 0.1, "image_momentum": 0.5, "image_milestones": [1200, 1400, 1800], "init": "noise", "augment": "none", "max_outer": 1, "max_inner": 1, "batch_train": 256, "network_lr": 0.01, "name": "cafe", "preset": "paper", "beta": 1.0, "layer_weights": [1.0, 1.0, 1.0], "layers": [0, 1, 2], "discrimination": true, "bilevel": "dynamic", "lambda_1": 0.05, "lambda_2": 0.05, "gamma": 10, "query_per_class": 256, "query_carry": false}, "network": {"name": "convnet", "width": 16, "depth": 2, "norm": "instance", "activation": "relu", "pooling": "avg"}, "resources": {"workers": 1, "gpus_per_worker": 0.0, "cpus_per_worker": 1}, "precision": "float32", "compile": false, "checkpoint_every": 5}',NULL,NULL,'2026-11-27T12:27:31.275651Z','2026-11-27T12:27:31.366036Z',NULL,44,28,NULL,0);
CREATE TABLE IF NOT EXISTS "datasets" (
	number INTEGER NOT NULL, 
	id VARCHAR(40) NOT NULL, 
	name TEXT NOT NULL, 
	size BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	info JSON, 
	created_at VARCHAR(32) NOT NULL, 
	owner VARCHAR(40), 
	PRIMARY KEY (number), 
	CONSTRAINT datasets_owner_fkey FOREIGN KEY(owner) REFERENCES api_keys (id), 
	UNIQUE (id)
);
CREATE TABLE IF NOT EXISTS "attempts" (
	job_id VARCHAR(40) NOT NULL, 
	number INTEGER NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	submitted_at VARCHAR(32), 
	finished_at VARCHAR(32), 
	events_offset BIGINT NOT NULL, 
	outcome JSON, cause VARCHAR(16) DEFAULT 'submitted' NOT NULL, given_up_at VARCHAR(32), 
	PRIMARY KEY (job_id, number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO attempts VALUES('job_hwsegfe6uatnxnhk',1,'2026-11-27T12:25:49.107322Z','2026-11-27T12:25:57.240153Z','2026-11-27T12:27:27.924142Z',2699,'{"type": "finished", "result": {"iterations": 3, "images": 10, "evaluation": {"networks": [{"name": "convnet", "mean": 10.0, "std": 0.0, "n": 1, "accuracies": [10.0]}], "baselines": {}}, "seconds": {"condensing": 34.084, "total": 70.891}, "versions": {"cafe-service": "0.1.0", "torch": "2.14.1", "numpy": "2.4.6"}}}','submitted',NULL);
INSERT INTO attempts VALUES('job_w4vha5ao2wikrey7',1,'2026-11-27T12:27:31.287786Z','2026-11-27T12:27:31.573637Z',NULL,12057,NULL,'submitted',NULL);
CREATE TABLE artifacts (
	job_id VARCHAR(40) NOT NULL, 
	attempt INTEGER NOT NULL, 
	name VARCHAR(255) NOT NULL, 
	size BIGINT NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	media_type VARCHAR(64) NOT NULL, 
	PRIMARY KEY (job_id, attempt, name), 
	FOREIGN KEY(job_id, attempt) REFERENCES attempts (job_id, number) ON DELETE CASCADE
);
INSERT INTO artifacts VALUES('job_hwsegfe6uatnxnhk',1,'preview.png',1716,'149d08d7ce764860a07855343559a8df7a221c6e5411b53c300eb6f9cf8b5b12','image/png');
INSERT INTO artifacts VALUES('job_hwsegfe6uatnxnhk',1,'result.json',415,'7764183287cb8716d5e1c60b079c7b765a0f0c7c9618285abc5736062951a91a','application/json');
INSERT INTO artifacts VALUES('job_hwsegfe6uatnxnhk',1,'synthetic.safetensors',4400,'7638286d0ce360af1f9b15708eaf79d13cafb76a0fbaa70c23ef149408ffe0d7','application/octet-stream');
CREATE TABLE deliveries (
	id VARCHAR(40) NOT NULL, 
	job_id VARCHAR(40) NOT NULL, 
	url TEXT NOT NULL, 
	body TEXT NOT NULL, 
	tries INTEGER NOT NULL, 
	next_try_at VARCHAR(32), 
	delivered_at VARCHAR(32), 
	error TEXT, 
	created_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE idempotency (
	owner VARCHAR(40) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	body_sha256 VARCHAR(64) NOT NULL, 
	job_id VARCHAR(40) NOT NULL, 
	created_at VARCHAR(32) NOT NULL, 
	PRIMARY KEY (owner, "key"), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('jobs',2);
CREATE INDEX job_labels_by_value ON job_labels ("key", value);
CREATE INDEX ix_jobs_status ON jobs (status);
CREATE INDEX ix_jobs_owner ON jobs (owner);
CREATE INDEX ix_datasets_owner ON datasets (owner);
CREATE INDEX ix_deliveries_next_try_at ON deliveries (next_try_at);
CREATE INDEX ix_deliveries_job_id ON deliveries (job_id);
CREATE INDEX ix_idempotency_job_id ON idempotency (job_id);
COMMIT;
